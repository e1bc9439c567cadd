package ktextmask

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
)

// Build decodes a bzImage and computes its mask. It fails where a table is not
// found for certain: a wrong mask would either hide an attack or accuse an
// honest machine. It needs about four times the kernel's size in memory.
func Build(bzImage []byte) (*Mask, error) {
	release, err := Release(bzImage)
	if err != nil {
		return nil, err
	}
	vmlinux, err := Vmlinux(bzImage)
	if err != nil {
		return nil, err
	}
	return build(release, vmlinux)
}

func build(release string, vmlinux []byte) (*Mask, error) {
	k, err := openKernel(vmlinux)
	if err != nil {
		return nil, err
	}
	m := &Mask{Release: release, TextBase: k.text.addr, TextSize: uint64(len(k.text.data))}
	if m.Notes, err = k.notes(); err != nil {
		return nil, err
	}
	if m.Without, err = k.absent(); err != nil {
		return nil, fmt.Errorf("configuration of %s: %w", release, err)
	}
	if err := m.addRunTime(k); err != nil {
		return nil, fmt.Errorf("run-time sites of %s: %w", release, err)
	}
	if err := m.addBoot(k); err != nil {
		return nil, fmt.Errorf("boot-time sites of %s: %w", release, err)
	}
	text := slices.Clone(k.text.data)
	m.zeroAll(text)
	for piece := range slices.Chunk(text, Granule) {
		m.Stock = append(m.Stock, sha256.Sum256(piece))
	}
	return m, nil
}

func (m *Mask) addRunTime(k *kernel) error {
	tramps := k.trampolines()
	calls, err := m.jumpsAndCalls(k, tramps)
	if err != nil {
		return err
	}
	consts, _, err := k.runtimeConsts()
	if err != nil {
		return err
	}
	into := &m.Classes
	if m.callsSettle() {
		into = &m.Once
	}
	*into = append(*into, sitesOf(StaticCall, calls), sitesOf(Trampoline, tramps))
	m.Classes = append(m.Classes, sitesOf(RuntimeConst, consts))
	return nil
}

// jumpsAndCalls adds the jump labels and returns the sites of static calls.
func (m *Mask) jumpsAndCalls(k *kernel, tramps []Range) ([]Range, error) {
	if !m.Has(JumpLabels) {
		at, err := k.findStaticCalls(tramps)
		if err != nil {
			return nil, err
		}
		return k.staticCalls(at, tramps)
	}
	jumps, end, err := k.jumpLabels()
	if err != nil {
		return nil, err
	}
	m.jumpLabels(jumps)
	return k.staticCalls(end, tramps)
}

func (m *Mask) addBoot(k *kernel) error {
	var all []Range
	add := func(name string, ranges []Range) {
		c := Count{Name: name}
		for _, r := range merge(ranges) {
			c.Ranges++
			c.Bytes += int(r.Len)
		}
		m.AtBoot = append(m.AtBoot, c)
		all = append(all, ranges...)
	}
	alternatives, err := k.alternatives()
	if err != nil {
		return err
	}
	add(Alternative, alternatives)
	for _, s := range []struct {
		class, section string
		size           func([]byte) uint32
	}{
		{Retpoline, ".retpoline_sites", branchSize},
		{Return, ".return_sites", fixed(5)},
		{Call, ".call_sites", fixed(5)},
		{SMPLock, ".smp_locks", fixed(1)},
		{Endbr, ".ibt_endbr_seal", fixed(4)},
	} {
		ranges, err := k.sites(s.section, s.size)
		if err != nil {
			return err
		}
		add(s.class, ranges)
	}
	_, consts, err := k.runtimeConsts()
	if err != nil {
		return err
	}
	add(CallPadding, k.callPadding())
	if m.Has(Ftrace) {
		entries, err := k.ftraceEntries()
		if err != nil {
			return err
		}
		add(FtraceEntry, entries)
	}
	add(CPUConst, consts)
	for _, c := range m.Once {
		add(c.Name, c.Ranges)
	}
	m.Boot = subtract(merge(all), m.RunTime())
	return nil
}

// sitesOf makes a class whose sites are judged one by one and stay apart.
func sitesOf(name string, ranges []Range) Class {
	slices.SortFunc(ranges, func(a, b Range) int { return cmp.Compare(a.Off, b.Off) })
	return Class{Name: name, Ranges: slices.CompactFunc(ranges, func(a, b Range) bool { return a.Off == b.Off })}
}

func (m *Mask) jumpLabels(labels []site) {
	slices.SortFunc(labels, func(a, b site) int { return cmp.Compare(a.Off, b.Off) })
	labels = slices.CompactFunc(labels, func(a, b site) bool { return a.Off == b.Off })
	c := Class{Name: JumpLabel}
	for _, l := range labels {
		c.Ranges = append(c.Ranges, l.Range)
		c.Targets = append(c.Targets, l.target)
	}
	m.Classes = append(m.Classes, c)
}
