"""Tests of the files in deploy/, and of the product on the servers that they start."""
