"""Speed benchmarks: each module runs our code and a peer side by side and prints the ratio."""
