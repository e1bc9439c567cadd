package luks2

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
)

// cryptsetup and luks.go count on it, and a power cut would leave two copies that
// differ under one number.
func TestEveryWriteHasItsOwnNumber(t *testing.T) {
	d, h, _ := small(t)
	for range 3 {
		before, _, err := Read(d, smallSize)
		check(t, err)
		check(t, h.Write(d))
		after, health, err := Read(d, smallSize)
		check(t, err)
		if after.Sequence() != before.Sequence()+1 || after.Sequence() != h.Sequence() || !health.Good() {
			t.Errorf("%d, then %d, %d in memory, %+v", before.Sequence(), after.Sequence(), h.Sequence(), health)
		}
	}
}

func TestSlotsRunOut(t *testing.T) {
	d, h, key := small(t)
	n := 1
	for ; ; n++ {
		if _, err := h.AddSlot(d, key, fmt.Append(nil, "slot ", n), cheap); err != nil {
			if ReasonOf(err) != ReasonFull {
				t.Fatal(err)
			}
			break
		}
	}
	if n != 3 { // 1 MiB less two headers holds three areas
		t.Errorf("%d slots", n)
	}
	check(t, h.Write(d))
	check(t, h.KillSlot(d, 1))
	got := must[int](t)(h.AddSlot(d, key, []byte("again"), cheap))
	check(t, h.Write(d))
	h, _, err := Read(d, smallSize)
	check(t, err)
	for pass, slot := range map[string]int{string(chipPass): 0, "again": got, "slot 2": 2} {
		if _, s, err := h.Unlock(d, []byte(pass)); err != nil || s != slot {
			t.Errorf("%s: %d, %v", pass, s, err)
		}
	}
	if _, _, err := h.Unlock(d, []byte("slot 1")); ReasonOf(err) != ReasonPassphrase {
		t.Errorf("killed slot: %v", err)
	}
}

func TestTokensRunOut(t *testing.T) {
	d, h, _ := small(t)
	for i := 1; i < MaxSlots; i++ {
		if id := must[int](t)(h.SetToken(-1, token("t", 0, ""))); id != i {
			t.Errorf("token %d", id)
		}
	}
	if _, err := h.SetToken(-1, token("t", 0, "")); ReasonOf(err) != ReasonFull {
		t.Error(err)
	}
	must[int](t)(h.SetToken(0, token("t", 0, strings.Repeat("x", 12<<10))))
	before := bytes.Clone(d)
	if err := h.Write(d); ReasonOf(err) != ReasonFull || !bytes.Equal(before, d) {
		t.Errorf("metadata larger than their area: %v", err)
	}
	for i := range MaxSlots {
		check(t, h.RemoveToken(i))
	}
	if err := h.RemoveToken(0); ReasonOf(err) != ReasonNoSlot {
		t.Error(err)
	}
	check(t, h.Write(d))
	for name, bad := range map[string]string{
		"no JSON":        `{`,
		"two values":     `{"type":"t","keyslots":[]}{}`,
		"no type":        `{"keyslots":[]}`,
		"no slots":       `{"type":"t"}`,
		"no such slot":   `{"type":"t","keyslots":["9"]}`,
		"slot as number": `{"type":"t","keyslots":[0]}`,
		"twice":          `{"type":"t","type":"t","keyslots":["0"]}`,
	} {
		if _, err := h.SetToken(-1, []byte(bad)); ReasonOf(err) != ReasonUsage {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := h.SetToken(32, token("t", 0, "")); ReasonOf(err) != ReasonUsage {
		t.Error(err)
	}
}

// Two programs with the same header in memory: the later one must not write over the
// keyslot that the first one made, nor kill by a number that means another slot now.
func TestOldHeaderInMemoryTouchesNothing(t *testing.T) {
	d, first, key := small(t)
	second, _, err := Read(d, smallSize)
	check(t, err)
	must[int](t)(first.AddSlot(d, key, []byte("first"), cheap))
	check(t, first.Write(d))
	before := bytes.Clone(d[2*HeaderSize:])
	if _, err := second.AddSlot(d, key, []byte("second"), cheap); ReasonOf(err) != ReasonStale {
		t.Error(err)
	}
	if err := second.Write(d); ReasonOf(err) != ReasonStale {
		t.Error(err)
	}
	third, _, err := Read(d, smallSize)
	check(t, err)
	check(t, first.Write(d))
	if !bytes.Equal(before, d[2*HeaderSize:]) {
		t.Error("a keyslot area was written")
	}
	now := bytes.Clone(d)
	if err := third.KillSlot(d, 1); ReasonOf(err) != ReasonStale {
		t.Error(err)
	}
	if !bytes.Equal(now, d) {
		t.Error("the device was written")
	}
	if _, _, err := first.Unlock(d, []byte("first")); err != nil {
		t.Error(err)
	}
}

func TestKillSlotLeavesNothing(t *testing.T) {
	d, h, key := small(t)
	id := must[int](t)(h.AddSlot(d, key, []byte("second"), cheap))
	both := []byte(`{"type":"for-both","keyslots":["0","1"],"n":12345678901234567890}`)
	must[int](t)(h.SetToken(5, both))
	must[int](t)(h.SetToken(6, token("only", id, "")))
	check(t, h.Write(d))
	a := h.meta.keyslots[id].Area
	material := bytes.Clone(d[a.Offset : a.Offset+a.Size])
	salt := []byte(base64.StdEncoding.EncodeToString(h.meta.keyslots[id].KDF.Salt))
	if bytes.Count(d, salt) != 2 {
		t.Fatal("the salt is not in both headers")
	}
	check(t, h.KillSlot(d, id))
	now := d[a.Offset : a.Offset+a.Size]
	same := 0
	for i := range now {
		if now[i] == material[i] {
			same++
		}
	}
	if same > len(now)/100 {
		t.Errorf("%d of %d bytes of the area are the old ones", same, len(now))
	}
	check(t, h.Write(d))
	if bytes.Contains(d, salt) {
		t.Error("the salt is still there")
	}
	tokens := h.Tokens()
	if len(tokens) != 2 || tokens[1].ID != 5 || len(tokens[1].Slots) != 1 || !bytes.Contains(tokens[1].JSON, []byte("12345678901234567890")) {
		t.Errorf("%+v", tokens)
	}
	if err := h.KillSlot(d, id); ReasonOf(err) != ReasonNoSlot {
		t.Error(err)
	}
	if err := h.KillSlot(d, 0); ReasonOf(err) != ReasonUsage {
		t.Errorf("the last slot: %v", err)
	}
	if _, _, err := h.Unlock(d, chipPass); err != nil {
		t.Error(err)
	}
}

func TestEraseLeavesNoWayIn(t *testing.T) {
	for name, damage := range map[string]func(memory){
		"whole":         func(memory) {},
		"no header":     func(d memory) { clear(d[:2*HeaderSize]) },
		"primary gone":  func(d memory) { clear(d[:HeaderSize]) },
		"header forged": func(d memory) { copy(d, forge(t, []byte(`{}`))[:2*HeaderSize]) },
	} {
		d, _, _ := small(t)
		damage(d)
		before := bytes.Clone(d)
		check(t, Erase(d, smallSize, smallOffset))
		if _, _, err := Read(d, smallSize); ReasonOf(err) != ReasonNoHeader {
			t.Errorf("%s: %v", name, err)
		}
		for at := 0; at < smallOffset; at += 4096 {
			if bytes.Equal(d[at:at+4096], before[at:at+4096]) {
				t.Fatalf("%s: the block at %d is still there", name, at)
			}
		}
		if !bytes.Equal(d[smallOffset:], before[smallOffset:]) {
			t.Errorf("%s: the payload was written", name)
		}
	}
	d, _, _ := small(t)
	for _, n := range []int64{0, -1, MaxKeyslotsSize + 1, smallSize + 1} {
		if err := Erase(d, smallSize, n); ReasonOf(err) != ReasonUsage {
			t.Errorf("header area of %d: %v", n, err)
		}
	}
	// The keyslots go first, all of them before any header.
	d, h, key := small(t)
	must[int](t)(h.AddSlot(d, key, []byte("second"), cheap))
	check(t, h.Write(d))
	if err := Erase(&failing{d, 2}, smallSize, smallOffset); ReasonOf(err) != ReasonDevice {
		t.Fatal(err)
	}
	h, _, err := Read(d, smallSize)
	check(t, err)
	for _, p := range []string{string(chipPass), "second"} {
		if _, _, err := h.Unlock(d, []byte(p)); ReasonOf(err) != ReasonPassphrase {
			t.Errorf("%s: %v", p, err)
		}
	}
	// Then both headers, in one write.
	if err := Erase(&failing{d, 3}, smallSize, smallOffset); ReasonOf(err) != ReasonDevice {
		t.Fatal(err)
	}
	if _, _, err := Read(d, smallSize); ReasonOf(err) != ReasonNoHeader {
		t.Errorf("after the headers: %v", err)
	}
}
