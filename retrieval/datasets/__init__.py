"""Photo collections as published, one file each: a folder in, rows of an image set out."""
