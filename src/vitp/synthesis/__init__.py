"""Labels to instructions: what labelled data sets know, asked and answered in words, boxes and coarse maps."""
