import sys

numbers = list(map(int, sys.stdin.read().split()))
print("\n".join(str(a + b) for a, b in zip(numbers[1::2], numbers[2::2])))
