# Too slow: adds one at a time.
n = int(input())
for _ in range(n):
    a, b = map(int, input().split())
    step = 1 if b > 0 else -1
    for _ in range(abs(b)):
        a += step
    print(a)
