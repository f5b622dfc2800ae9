/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/options.h"

#include <ctype.h>

#include "base/mem.h"

#define HELP_COLUMN 30

const struct option_desc options[] = {
	{ "config", OPTION_CONFIG, "FILE", "read options from a JSON file",
	  "The file holds one JSON object whose members have the names of the "
	  "options, without the dashes: repeatable options are arrays, "
	  "numbers are numbers, options without a value are booleans. "
	  "An option of the command line replaces the same one of the file; "
	  "repeatable ones are added to those of the file. "
	  "The file may have at most 1 MiB." },
	{ "state", OPTION_TEXT, "DIR",
	  "directory for what must survive (needed)",
	  "It is made, with mode 0700, if it is missing. "
	  "Only one stillpointd at a time can use it." },
	{ "qmp", OPTION_LIST, "ADDRESS", "listen for QMP clients (repeatable)",
	  "Only loopback addresses and unix sockets are accepted, because "
	  "TLS is needed for others. "
	  "A unix socket gets mode 0600. "
	  "Without this option: unix:STATE/qmp.sock." },
	{ "nbd", OPTION_LIST, "ADDRESS", "listen for guests, NBD (repeatable)",
	  "The sockets are handed to nbdkit. "
	  "Without this option guests cannot connect, and nothing can be "
	  "exported, until a client says nbd-server-start; its address is "
	  "remembered." },
	{ "allow", OPTION_LIST, "DIR",
	  "images may lie below this directory (repeatable)",
	  "Files that clients name must lie below one of these directories "
	  "after all links were followed. "
	  "A link with an absolute target does not count as inside. "
	  "Without this option no file can be opened." },
	{ "blockdev", OPTION_JSON, "JSON", "add a node at start (repeatable)",
	  "JSON is an object with the arguments of blockdev-add. "
	  "A node that the state directory knows already is left as it is, "
	  "also one whose image cannot be opened now." },
	{ "export", OPTION_JSON, "JSON", "export a node at start (repeatable)",
	  "JSON is an object with the arguments of block-export-add. "
	  "All nodes of --blockdev are added first." },
	{ "store", OPTION_TEXT, "DIR",
	  "where backups keep what guests overwrite",
	  "Space is needed here for what guests overwrite while a backup "
	  "runs. Without this option: STATE/store." },
	{ "shm", OPTION_TEXT, "DIR", "tmpfs directory shared with nbdkit",
	  "It must be ours and closed to others. Without this option: "
	  "/dev/shm/stillpoint-UID-HASH, where HASH belongs to the state "
	  "directory." },
	{ "target-timeout", OPTION_NUMBER, "SECONDS",
	  "how long a backup target may be silent (60)", "From 1 to 86400." },
	{ "nbdkit", OPTION_TEXT, "PATH", "the nbdkit program",
	  "Without this option nbdkit is looked up in PATH." },
	{ "plugin", OPTION_TEXT, "PATH", "path of nbdkit-stillpoint-plugin.so",
	  "Without this option: the one of the build tree that stillpointd "
	  "runs from, else the installed one." },
	{ "threads", OPTION_NUMBER, "N",
	  "nbdkit's threads for each guest connection",
	  "From 1 to 1024. Without this option nbdkit decides (16)." },
	{ "keep-nbdkit", OPTION_FLAG, NULL, "leave nbdkit running at the end",
	  "Guests notice nothing of a restart of stillpointd: the next one "
	  "with the same state directory takes over the nbdkit that runs." },
	{ "allow-fault-injection", OPTION_FLAG, NULL,
	  "nodes may have driver blkdebug",
	  "Such nodes fail requests as a client chooses: for tests, and to "
	  "rehearse what happens then." },
	{ "tls", OPTION_TEXT, "off|on|require",
	  "TLS for guests, as nbdkit's option", NULL },
	{ "tls-certificates", OPTION_TEXT, "DIR",
	  "X.509 certificates for guests, as nbdkit's option", NULL },
	{ "tls-psk", OPTION_TEXT, "FILE",
	  "pre-shared keys for guests, as nbdkit's option", NULL },
	{ "tls-verify-peer", OPTION_FLAG, NULL,
	  "verify the certificates of guests, as nbdkit's option", NULL },
	{ "log-level", OPTION_TEXT, "error|warning|info|debug",
	  "how much to log on standard error (info)", NULL },
	{ "version", OPTION_VERSION, NULL, "print the version and exit", NULL },
	{ "help", OPTION_HELP, NULL, "print this text and exit", NULL },
};

const size_t options_count = ARRAY_SIZE(options);

void
options_print_help(FILE *f)
{
	(void)fprintf(f,
		      "Usage: stillpointd --state DIR [OPTION]...\n"
		      "Back up live disks that guests use over NBD; controlled "
		      "by QMP.\n"
		      "ADDRESS is unix:PATH or tcp:HOST:PORT "
		      "(an empty HOST is the loopback address).\n\n");
	for (size_t i = 0; i < options_count; i++) {
		const struct option_desc *o = &options[i];
		int n = fprintf(f, "  --%s%s%s", o->name, o->arg ? " " : "",
				o->arg ? o->arg : "");

		if (n >= HELP_COLUMN) {
			(void)fputc('\n', f);
			n = 0;
		}
		(void)fprintf(f, "%*s%s\n", HELP_COLUMN - n, "", o->help);
	}
	(void)fprintf(f, "\nExit codes: 0 after quit or SIGTERM, 1 after a "
			 "failure, 2 for wrong usage or\nconfiguration.\n");
}

/* A dash that can be copied, and nothing that troff takes for a request. */
static void
print_escaped(FILE *f, const char *s)
{
	for (; *s; s++) {
		if (*s == '-')
			(void)fputs("\\-", f);
		else if (*s == '\\')
			(void)fputs("\\e", f);
		else
			(void)fputc(*s, f);
	}
}

static void
print_heading(FILE *f, const struct option_desc *o)
{
	(void)fputs(".TP\n.B ", f);
	print_escaped(f, "--");
	print_escaped(f, o->name);
	if (o->arg) {
		(void)fputs(" \\fI", f);
		print_escaped(f, o->arg);
		(void)fputs("\\fR", f);
	}
	(void)fputs("\n", f);
}

void
options_print_man(FILE *f)
{
	for (size_t i = 0; i < options_count; i++) {
		const struct option_desc *o = &options[i];

		print_heading(f, o);
		/* The line of --help becomes a sentence. */
		(void)fputc(toupper((unsigned char)o->help[0]), f);
		print_escaped(f, o->help + 1);
		(void)fputs(".\n", f);
		if (o->man) {
			print_escaped(f, o->man);
			(void)fputs("\n", f);
		}
	}
}
