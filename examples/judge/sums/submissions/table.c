/* Takes all the memory it can get: a table of every sum. */
#include <stdlib.h>
#include <string.h>

int main(void)
{
    for (;;) {
        char *row = malloc(1 << 20);
        if (row)
            memset(row, 1, 1 << 20);
    }
}
