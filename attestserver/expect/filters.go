package expect

import (
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"

	"portcullis/attestserver/expect/rootimage"
	"portcullis/attestserver/protocol"
)

// dockerTables are those that Docker fills, through iptables or by itself, and
// systemd-networkd; in those of iptables packets come through chains with the
// names of its hooks only.
var dockerTables = map[string]bool{"ip filter": true, "ip nat": true, "ip raw": true, "ip6 filter": true, "ip6 nat": true, "ip6 raw": true,
	"ip docker-bridges": true, "ip6 docker-bridges": true, "ip io.systemd.nat": true, "ip6 io.systemd.nat": true}

var iptablesHooks = map[string]bool{"PREROUTING": true, "INPUT": true, "FORWARD": true, "OUTPUT": true, "POSTROUTING": true}

// imageFilters are the files in which an image sets up a packet filter of its own.
const (
	imageFilters = "/etc/nftables.conf"
	maxFilters   = 1 << 20
)

var tableLine = regexp.MustCompile(`(?m)^\s*(?:add\s+|create\s+)?table\s+(?:(ip|ip6|inet|arp|bridge|netdev)\s+)?([A-Za-z0-9_./-]+)`)

// noteFilters is the note with the digest of the rules that was told last.
const noteFilters = "net.filters"

// filters judges the packet filter: tables that neither Docker nor the image
// makes, and chains of nobody in those of iptables. Rules come and go with
// containers, so that another digest is noted and no more.
func (e *Net) filters(j *judge, st *protocol.ImageState, d *protocol.NetData) error {
	own, err := e.imageTables()
	if err != nil {
		return err
	}
	var names []string
	for _, t := range d.Filters {
		name := t.Family + " " + t.Name
		names = append(names, fmt.Sprintf("%s: %d rules", name, t.Rules))
		switch {
		case own[name]:
		case !dockerTables[name]:
			j.fatal(ReasonFilter, "table %s with %d rules", name, t.Rules)
		case strings.HasSuffix(name, " filter") || strings.HasSuffix(name, " nat") || strings.HasSuffix(name, " raw"):
			for _, c := range t.Chains {
				if !iptablesHooks[c.Name] {
					j.fatal(ReasonFilter, "chain %s of table %s at hook %d, priority %d", c.Name, name, c.Hook, c.Priority)
				}
			}
		}
	}
	if st.Notes == nil {
		st.Notes = map[string][]byte{}
	}
	if told, ok := st.Notes[noteFilters]; ok && string(told) != d.FilterRules {
		j.add(protocol.Info, ReasonFilterChanged, "%s", strings.Join(names[:min(len(names), maxListeners)], ", "))
	}
	st.Notes[noteFilters] = []byte(d.FilterRules)
	return nil
}

// imageTables are the tables that the image's own configuration names. Without a
// family, a table is of IPv4 (nft(8)).
func (e *Net) imageTables() (map[string]bool, error) {
	b, err := e.files.ReadFile(imageFilters, maxFilters)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, rootimage.ErrNotRegular) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, m := range tableLine.FindAllSubmatch(b, -1) {
		family := string(m[1])
		if family == "" {
			family = "ip"
		}
		out[family+" "+string(m[2])] = true
	}
	return out, nil
}
