"""What the words of ``crystal-gym`` do: a module for each command, the parser, and the terminal."""
