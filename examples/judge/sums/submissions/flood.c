#include <stdio.h>

int main(void)
{
    for (;;)
        puts("The answer is in here somewhere.");
}
