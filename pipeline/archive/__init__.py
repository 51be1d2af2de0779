"""The exchange with a hospital's image archive (PACS) by DICOM's own protocols."""
