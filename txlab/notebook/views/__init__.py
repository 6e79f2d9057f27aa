"""What is seen: pure functions of what the bus knows, to HTML, SVG and text."""
