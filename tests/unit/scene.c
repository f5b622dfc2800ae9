/* SPDX-License-Identifier: BSD-3-Clause */
#include "scene.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "unit.h"

static void
on_broken(void *opaque, int os)
{
	struct scene *s = opaque;

	s->broken_calls++;
	s->broken_os = os;
}

void
scene_init(struct scene *s, const struct scene_options *o)
{
	struct err e = ERR_INIT;
	int fd = tmpfs_file();
	struct cbw_options c = { .unit = o->unit ? o->unit : 65536,
				 .policy = o->policy,
				 .timeout_ms = o->timeout_ms,
				 .broken = on_broken,
				 .opaque = s };

	*s = (struct scene){ .mask = o->mask };
	s->image = mem_image_new(o->size);
	assert_ok(view_format(fd, o->size, &e), &e);
	assert_ok(view_open(fd, &s->view, &e), &e);
	s->store = o->store ? open(o->store, O_RDWR | O_CLOEXEC) : tmpfs_file();
	assert_true(s->store >= 0);
	c.view = view_ref(s->view);
	c.store = fcntl(s->store, F_DUPFD_CLOEXEC, 0);
	c.image = &s->image->block;
	if (s->mask)
		c.mask[c.n++] = epoch_ref(s->mask);
	assert_ok(cbw_new(&c, &s->cbw, &e), &e);
	s->reader = (struct view_reader){ .image = &s->image->block,
					  .view = s->view,
					  .store = s->store,
					  .mask = { .v = &s->mask,
						    .n = s->mask ? 1 : 0,
						    .size = o->size,
						    .unit = c.unit } };
}

void
scene_destroy(struct scene *s)
{
	cbw_free(s->cbw);
	view_unref(s->view);
	if (s->mask)
		epoch_unref(s->mask);
	(void)close(s->store);
	mem_image_free(s->image);
}

int
scene_write(struct scene *s, uint64_t off, uint64_t len, int byte)
{
	AUTO(free) char *buf = xzalloc(len);
	int r = cbw_before_write(s->cbw, off, len);

	memset(buf, byte, len);
	return r ? r : block_pwrite(&s->image->block, buf, len, off);
}

int
scene_zero(struct scene *s, uint64_t off, uint64_t len)
{
	int r = cbw_before_write(s->cbw, off, len);

	return r ? r : block_zero(&s->image->block, off, len, 0);
}

void
scene_check_pattern(struct scene *s, uint64_t off, uint64_t len)
{
	AUTO(free) unsigned char *buf = xzalloc(len);

	assert_int_equal(view_reader_pread(&s->reader, buf, len, off), 0);
	for (uint64_t i = 0; i < len; i++)
		if (buf[i] != mem_image_pattern(off + i))
			fail_msg("byte %llu of the view is %02x, not %02x",
				 (unsigned long long)(off + i), buf[i],
				 mem_image_pattern(off + i));
}

enum view_state
scene_state(const struct scene *s, uint64_t off)
{
	return view_get(s->view, off / view_granule(s->view));
}
