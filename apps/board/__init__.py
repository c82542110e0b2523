"""What runs on a phone or a board: runners with one protocol, how they are built, and `acmix profile --device`."""
