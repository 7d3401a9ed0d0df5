/* Wrong: two ints of 2*10^9 do not fit in one. */
#include <stdio.h>

int main(void)
{
    int n, a, b;
    scanf("%d", &n);
    for (int i = 0; i < n; i++) {
        scanf("%d %d", &a, &b);
        printf("%d\n", (int)((unsigned)a + (unsigned)b));
    }
    return 0;
}
