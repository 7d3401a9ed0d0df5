/* Runs a target once for each file that is named: what libFuzzer's own main does with files, for any compiler. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (!file || fseek(file, 0, SEEK_END))
            return perror(argv[i]), 2;
        size_t size = (size_t)ftell(file);
        uint8_t *data = malloc(size ? size : 1); /* just as large, so that reading past its end is seen */
        rewind(file);
        if (!data || fread(data, 1, size, file) != size)
            return perror(argv[i]), 2;
        fclose(file);
        fprintf(stderr, "%s\n", argv[i]);
        LLVMFuzzerTestOneInput(data, size);
        free(data);
    }
    return 0;
}
