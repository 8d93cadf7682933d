"""What is right and what is a known mistake, one module for each lesson's exercises."""
