"""Research ideas about the step, one runnable file each: python -m mnist.research.NAME --helpshort"""
