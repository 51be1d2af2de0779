"""Reading of one DICOM file into one radiograph. Files are hostile: each is bounded, and read in a separate process."""
