"""Small networks without BatchNorm statistics, trained here on images at hand."""
