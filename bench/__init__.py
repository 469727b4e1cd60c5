"""Benchmarks, each with the peers that it runs beside; ``bench/README.md`` says what they measure."""
