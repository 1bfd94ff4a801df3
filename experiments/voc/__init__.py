"""PASCAL VOC 2012: generate pairs for its classes, train a segmenter on them, measure it on val."""
