package rootimage

import "container/list"

// cache keeps unpacked blocks by their position, the least used ones go first.
type cache struct {
	max, size int // bytes
	order     *list.List
	blocks    map[uint64]*list.Element
}

type cached struct {
	at     uint64
	data   []byte
	stored uint64 // bytes in the image, for metadata
}

func newCache(max int) *cache {
	return &cache{max: max, order: list.New(), blocks: map[uint64]*list.Element{}}
}

func (c *cache) get(at uint64) *cached {
	e := c.blocks[at]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*cached)
}

func (c *cache) put(at uint64, b *cached) {
	if c.blocks[at] != nil {
		return
	}
	b.at = at
	c.blocks[at] = c.order.PushFront(b)
	c.size += len(b.data)
	for c.size > c.max && c.order.Len() > 1 {
		last := c.order.Back()
		old := c.order.Remove(last).(*cached)
		delete(c.blocks, old.at)
		c.size -= len(old.data)
	}
}
