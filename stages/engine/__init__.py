"""What makes the formulas fast and nothing else; every part has a short reference that states what it computes.

tests/engine/reference.py has the references. Docstrings say how much faster a part is than the plain library call, as
`python -m benchmarks.engine` measured it on one thread of an AMD EPYC with AVX-512 and VNNI; on processors without int8
dot products the products gain less (benchmarks/README.md).
"""
