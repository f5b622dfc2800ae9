/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The one table of stillpointd's options: what the command line accepts, what
 * --help prints and what the manual page says come from here.
 */
#ifndef DAEMON_OPTIONS_H
#define DAEMON_OPTIONS_H

#include <stddef.h>
#include <stdio.h>

enum option_kind {
	OPTION_TEXT, /* one value; the last one given counts */
	OPTION_LIST, /* repeatable */
	OPTION_JSON, /* repeatable, each a JSON object */
	OPTION_NUMBER, /* decimal */
	OPTION_FLAG,
	OPTION_CONFIG, /* the configuration file */
	OPTION_HELP,
	OPTION_VERSION,
};

struct option_desc {
	const char *name; /* without "--"; also the name in the file */
	enum option_kind kind;
	const char *arg; /* what stands for its value; NULL: none */
	const char *help; /* one line */
	const char *man; /* more for the manual page, NULL: nothing */
};

extern const struct option_desc options[];
extern const size_t options_count;

/* The text of --help. */
void options_print_help(FILE *f);

/* The option section of the manual page, in man(7) markup. */
void options_print_man(FILE *f);

#endif
