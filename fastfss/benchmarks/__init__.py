"""What the files below bench/results say, as one page: `fastfss bench report`."""
