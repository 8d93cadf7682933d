"""The instructor's tools: student editions, checks, and grading through nbval."""
