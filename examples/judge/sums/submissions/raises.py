raise SystemExit(int(input()) * 0 + 3)
