/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The daemon's configuration: the command line over a JSON file over defaults.
 * Both are brought into one JSON object with the option names as members and
 * decoded once, as schema/config.json says, so a wrong value is refused in the
 * same words wherever it stands.
 */
#ifndef DAEMON_CONFIG_H
#define DAEMON_CONFIG_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "base/log.h"
#include "daemon/listen.h"

#define CONFIG_FILE_MAX           (1 << 20) /* bytes */
#define CONFIG_THREADS_MAX        1024
#define CONFIG_TARGET_TIMEOUT     60 /* seconds, default */
#define CONFIG_TARGET_TIMEOUT_MAX 86400

struct config_options;
struct blockdev_options_list;
struct block_export_options_list;

struct config {
	struct config_options *given; /* owned: what the decoder made */
	const char *state; /* borrowed from @given */
	struct address *qmp; /* owned, @n_qmp of them */
	size_t n_qmp;
	struct address *nbd; /* owned, @n_nbd of them */
	size_t n_nbd;
	char *const *allow; /* borrowed from @given, @n_allow of them */
	size_t n_allow;
	char *store; /* owned; after config_complete */
	char *shm; /* owned; after config_complete */
	bool shm_is_ours; /* the default: removed at the end, when empty */
	char *nbdkit; /* owned */
	char *plugin; /* owned */
	char **nbdkit_args; /* owned: TLS options, NULL at the end */
	unsigned threads; /* 0: nbdkit's default */
	unsigned target_timeout; /* seconds */
	bool keep_nbdkit;
	bool allow_fault_injection;
	enum log_level log_level;
	/* Nodes and exports to add at start.  Their types are those of
	 * schema/config-types.h and schema/registry-types.h.
	 */
	const struct blockdev_options_list *blockdev; /* borrowed from @given */
	struct block_export_options_list *exports; /* owned */
};

enum config_result {
	CONFIG_RUN,
	CONFIG_DONE, /* --help or --version was printed: exit 0 */
	CONFIG_WRONG, /* *e says what is wrong: exit 2 */
};

/* Before any thread; reads the configuration file.  Nothing else of the file
 * system is touched.  config_destroy() is to be called after CONFIG_RUN only.
 */
enum config_result config_parse(struct config *c, int argc, char **argv,
				struct err *e);

/* What depends on the state directory, whose canonical path is @state: the
 * defaults of --qmp, --store and --shm.
 */
bool config_complete(struct config *c, const char *state, struct err *e)
	MUST_CHECK;

void config_destroy(struct config *c);

#endif
