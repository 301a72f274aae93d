"""The inner loops of generation in C++, compiled once on the machine they run on."""
