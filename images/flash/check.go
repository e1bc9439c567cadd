package flash

import (
	"fmt"

	"portcullis/images/blockmap"
	"portcullis/images/card"
)

// maxPlausible is the size of a disk in bytes above which it is no card.
const maxPlausible = 2e12

// Need is the size in bytes that a device must have for an image: the first boot
// makes two system slots and a data volume behind it.
func Need(m *blockmap.Map) int64 { return m.Size + 2*card.SystemSize + card.MinData }

// Check refuses a disk that must not or cannot take an image that needs so many
// bytes. force overrides what is only unlikely, never what would destroy something
// in use.
func (d *Disk) Check(need int64, force bool) error {
	for _, u := range d.Uses {
		return refuse(u.Reason, "%s: %s", d.Path, u.Detail)
	}
	switch {
	case d.ReadOnly:
		return refuse(ReasonReadOnly, "%s cannot be written; look for a switch on the card", d.Path)
	case d.Sector != card.SectorSize:
		return refuse(ReasonSector, "%s has sectors of %d bytes, the Pi's card has %d", d.Path, d.Sector, card.SectorSize)
	case d.Size < need:
		return refuse(ReasonTooSmall, "%s has %s, this image needs %s", d.Path, Bytes(d.Size), Bytes(need))
	case float64(d.Size) > maxPlausible && !force:
		return refuse(ReasonTooLarge, "%s has %s and is hardly a card; --force writes it all the same", d.Path, Bytes(d.Size))
	case !d.Removable && !force:
		return refuse(ReasonNotRemovable, "%s (%s) is built in; --force writes it all the same", d.Path, d.Transport)
	}
	return nil
}

// Bytes is a size for people, in the units printed on cards.
func Bytes(n int64) string {
	switch f := float64(n); {
	case f >= 1e12:
		return fmt.Sprintf("%.1f TB", f/1e12)
	case f >= 1e9:
		return fmt.Sprintf("%.1f GB", f/1e9)
	case f >= 1e6:
		return fmt.Sprintf("%.1f MB", f/1e6)
	default:
		return fmt.Sprintf("%d bytes", n)
	}
}
