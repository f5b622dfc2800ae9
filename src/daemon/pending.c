/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/pending.h"

#include <assert.h>

#include "daemon/daemon.h"

static void
on_idle(struct task *t)
{
	struct pending *p = container_of(t, struct pending, task);
	struct daemon *d = container_of(p, struct daemon, pending);
	void (*idle)(struct daemon *) = p->idle;

	if (p->n) /* something began in this very turn */
		return;
	p->idle = NULL;
	idle(d);
}

static void
check(struct daemon *d)
{
	struct pending *p = &d->pending;

	if (p->n || !p->idle || p->task.queued)
		return;
	p->task.fn = on_idle;
	loop_defer(&d->loop, &p->task);
}

void
pending_begin(struct daemon *d)
{
	d->pending.n++;
}

void
pending_end(struct daemon *d)
{
	assert(d->pending.n);
	d->pending.n--;
	check(d);
}

void
pending_wait(struct daemon *d, void (*idle)(struct daemon *d))
{
	assert(!d->pending.idle);
	d->pending.idle = idle;
	check(d);
}
