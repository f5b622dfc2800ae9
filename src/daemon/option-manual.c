/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Build time only: option-manual IN OUT copies a manual page and puts the
 * table of options where IN has the line @OPTIONS@, and the version where it
 * has @VERSION@ (once in a line).
 */
#include <stdio.h>
#include <string.h>

#include "daemon/options.h"

static void
copy_line(const char *line, FILE *out)
{
	static const char version[] = "@VERSION@";
	const char *at = strstr(line, version);

	if (strcmp(line, "@OPTIONS@\n") == 0)
		options_print_man(out);
	else if (at)
		(void)fprintf(out, "%.*s%s%s", (int)(at - line), line,
			      STILLPOINT_VERSION, at + sizeof version - 1);
	else
		(void)fputs(line, out);
}

int
main(int argc, char **argv)
{
	char line[1024];
	FILE *in, *out;
	int bad;

	if (argc != 3)
		return 2;
	in = fopen(argv[1], "r");
	out = fopen(argv[2], "w");
	if (!in || !out) {
		perror(argv[in ? 2 : 1]);
		return 1;
	}
	while (fgets(line, sizeof line, in))
		copy_line(line, out);
	bad = ferror(in) || ferror(out);
	bad |= fclose(out) != 0;
	(void)fclose(in);
	return bad ? 1 : 0;
}
