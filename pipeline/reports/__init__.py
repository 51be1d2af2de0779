"""Pictures and pages; nothing in this package changes a byte of the data, the model or the metrics."""
