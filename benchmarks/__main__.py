"""Run every benchmark; ``make bench`` starts it."""

from benchmarks import inference, loader, losses, memory, preprocess, reader, run, runtimes, sharing, train_step

if __name__ == "__main__":
    preprocess.main()
    loader.main()
    losses.main()
    inference.main()
    runtimes.main()
    reader.main()
    memory.main()
    train_step.main()  # it makes this process keep freed memory from here on
    run.main()
    sharing.main()
