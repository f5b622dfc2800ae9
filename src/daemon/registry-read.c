/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reading the registry at the start.
 *
 * A state that was staged for a transaction and never published is kept under
 * a third name until a registry that counts it is on the disk: nobody can tell
 * whether the data plane cut before both processes died.  Every bitmap that
 * recorded may have been recorded in the epochs of that state, so it gets
 * them.  They are the ones with numbers that the registry had not given out.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "daemon/daemon.h"
#include "daemon/registry-files.h"
#include "daemon/registry.h"
#include "json/json.h"

static bool
read_text(int fd, char **out, size_t *len, struct err *e)
{
	struct stat st;
	char *p;
	size_t got = 0;

	if (fstat(fd, &st) < 0)
		return err_set(e, ERR_GENERIC, errno, "cannot look at it");
	if ((uint64_t)st.st_size > REGISTRY_MAX_TEXT)
		return err_set(e, ERR_GENERIC, EFBIG, "cannot read it");
	p = *out = xzalloc((size_t)st.st_size + 1);
	while (got < (size_t)st.st_size) {
		ssize_t n = read(fd, p + got, (size_t)st.st_size - got);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return err_set(e, ERR_GENERIC, n ? errno : EIO,
				       "cannot read it");
		got += (size_t)n;
	}
	*len = got;
	return true;
}

/* *out is NULL when there is no such file. */
static bool
read_doc(const struct statedir *s, const char *name, struct registry_doc **out,
	 struct err *e)
{
	AUTO(close) int fd = openat(s->fd, name, O_RDONLY | O_CLOEXEC);
	AUTO(json_free) struct json *j = NULL;
	AUTO(free) char *text = NULL;
	size_t len = 0;

	*out = NULL;
	if (fd < 0 && errno == ENOENT)
		return true;
	if (fd < 0)
		return err_set(e, ERR_GENERIC, errno,
			       "cannot open the registry '%s/%s'", s->path,
			       name);
	if (!read_text(fd, &text, &len, e) || !json_parse(text, len, &j, e) ||
	    !registry_doc_decode(j, NULL, out, e))
		return err_prefix(e, "the registry '%s/%s': ", s->path, name);
	if ((*out)->version == REGISTRY_VERSION)
		return true;
	return err_set(e, ERR_GENERIC, 0,
		       "the registry '%s/%s' has version %u, and we know %d",
		       s->path, name, (*out)->version, REGISTRY_VERSION);
}

/* --- what was staged ------------------------------------------------------------- */

static const struct registry_node *
find_node(const struct registry_doc *doc, const char *name)
{
	for (size_t i = 0; i < doc->nodes.n; i++)
		if (strcmp(doc->nodes.v[i]->options->node_name, name) == 0)
			return doc->nodes.v[i];
	return NULL;
}

/* Epochs are made before the state that names them is staged. */
static bool
epoch_exists(const struct daemon *d, uint64_t id)
{
	AUTO(free) char *path = xasprintf("%s/epoch-%" PRIu64, d->cfg.shm, id);

	return access(path, F_OK) == 0;
}

static bool
has(const struct uint64_list *l, uint64_t id)
{
	for (size_t i = 0; i < l->n; i++)
		if (l->v[i] == id)
			return true;
	return false;
}

static void
count_epoch(struct registry_node *n, uint64_t id)
{
	for (size_t i = 0; i < n->bitmaps.n; i++) {
		struct registry_bitmap *b = n->bitmaps.v[i];

		if (!b->enabled || has(&b->epochs, id))
			continue;
		log_info("node '%s', bitmap '%s': epoch %" PRIu64
			 " of an unfinished transaction counts",
			 n->options->node_name, b->name, id);
		b->epochs.v = xrealloc(b->epochs.v, b->epochs.n + 1,
				       sizeof b->epochs.v[0]);
		b->epochs.v[b->epochs.n++] = id;
	}
}

static void
count_staged(const struct daemon *d, struct registry_doc *doc,
	     const struct registry_doc *staged)
{
	for (size_t i = 0; i < doc->nodes.n; i++) {
		struct registry_node *n = doc->nodes.v[i];
		const struct registry_node *s =
			find_node(staged, n->options->node_name);

		for (size_t k = 0; s && k < s->bitmaps.n; k++) {
			const struct uint64_list *l = &s->bitmaps.v[k]->epochs;

			for (size_t m = 0; m < l->n; m++)
				if (l->v[m] >= doc->next_id &&
				    epoch_exists(d, l->v[m]))
					count_epoch(n, l->v[m]);
		}
	}
	if (staged->next_id > doc->next_id)
		doc->next_id = staged->next_id;
}

/* Half a file was never staged: that ends with a sync. */
static void
keep_staged(const struct statedir *s)
{
	AUTO(registry_doc_free) struct registry_doc *doc = NULL;
	struct err e = ERR_INIT;

	if (read_doc(s, REGISTRY_NEW, &doc, &e) && doc)
		(void)renameat(s->fd, REGISTRY_NEW, s->fd, REGISTRY_STAGED);
	else
		(void)unlinkat(s->fd, REGISTRY_NEW, 0);
}

bool
registry_load(struct daemon *d, struct registry_doc **out, struct err *e)
{
	AUTO(registry_doc_free) struct registry_doc *staged = NULL;
	struct err ignore = ERR_INIT;

	keep_staged(&d->state);
	if (!read_doc(&d->state, REGISTRY_FILE, out, e))
		return false;
	if (!read_doc(&d->state, REGISTRY_STAGED, &staged, &ignore))
		log_warn("%s", ignore.msg);
	else if (*out && staged)
		count_staged(d, *out, staged);
	return true;
}
