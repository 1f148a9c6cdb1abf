"""The system broken on purpose: real processes, real faults, and what must hold afterwards."""
