"""Analysis: what a network costs, what it sees, and what it commutes with."""
