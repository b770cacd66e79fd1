"""Small networks without BatchNorm statistics or beside sensors, trained here on data at hand."""
