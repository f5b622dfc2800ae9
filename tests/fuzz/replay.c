/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Runs a fuzz target over files, for builds without libFuzzer: every input in
 * the folders that are named, and each of them cut short after every byte, or
 * with -s STEP after every STEP bytes.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t step = 1;

/* 0, or 1 when the file cannot be read. */
static int
replay_file(const char *folder, const char *name)
{
	static uint8_t buf[1 << 20];
	char path[4096];
	size_t n, cut;
	FILE *f;

	(void)snprintf(path, sizeof path, "%s/%s", folder, name);
	f = fopen(path, "rb");
	if (!f) {
		perror(path);
		return 1;
	}
	n = fread(buf, 1, sizeof buf, f);
	(void)fclose(f);
	for (cut = n % step; cut <= n; cut += step) {
		/* a copy of the exact size, so that a sanitizer sees its end */
		uint8_t *copy = malloc(cut ? cut : 1);

		if (!copy)
			return 1;
		for (size_t i = 0; i < cut; i++)
			copy[i] = buf[i];
		(void)LLVMFuzzerTestOneInput(copy, cut);
		free(copy);
	}
	return 0;
}

int
main(int argc, char **argv)
{
	int i, failed = 0, files = 0;
	struct dirent *d;
	DIR *dir;

	for (i = 1; i < argc; i++) {
		if (strcmp(argv[i], "-s") == 0 && i + 1 < argc) {
			step = strtoul(argv[++i], NULL, 10);
			continue;
		}
		dir = opendir(argv[i]);
		if (!dir) {
			perror(argv[i]);
			return 1;
		}
		while ((d = readdir(dir)) != NULL) {
			if (d->d_name[0] == '.')
				continue;
			failed += replay_file(argv[i], d->d_name);
			files++;
		}
		(void)closedir(dir);
	}
	printf("%d files\n", files);
	return failed || files == 0;
}
