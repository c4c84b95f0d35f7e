"""Where photos come from: published data sets and users' folders, one file each."""
