"""Run every benchmark; ``make bench``."""

from benchmarks import inference, loader, losses, memory, preprocess, train_step

if __name__ == "__main__":
    preprocess.main()
    loader.main()
    losses.main()
    inference.main()
    memory.main()
    train_step.main()  # last: it changes how the process handles memory
