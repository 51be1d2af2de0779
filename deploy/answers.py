"""Exit with 0 if the server at the given address is well, with 1 otherwise: the health check of a container."""

import sys

import requests

if __name__ == "__main__":
    try:
        sys.exit(not requests.get(sys.argv[1], timeout=5).ok)
    except requests.RequestException:
        sys.exit(1)
