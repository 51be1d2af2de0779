"""Run every benchmark; ``make bench``."""

from benchmarks import preprocess, train_step

if __name__ == "__main__":
    preprocess.main()
    train_step.main()
