"""make demo: a page on which one drags points, and a video that follows."""
