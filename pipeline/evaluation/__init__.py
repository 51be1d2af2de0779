"""Numbers, plots and the report, from detections and ground truth. No torch models here."""
