"""One runnable file per idea about the step: python -m mnist.research.NAME --helpshort"""
