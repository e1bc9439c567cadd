package debroot

import (
	"fmt"
	"path"
	"sort"
	"strconv"
	"strings"

	"portcullis/images/recipe"
	"portcullis/images/squash"
)

// Master files of base-passwd; its maintainer script would copy them.
const (
	passwdMaster = "/usr/share/base-passwd/passwd.master"
	groupMaster  = "/usr/share/base-passwd/group.master"
)

// noShell is what every account has: nobody logs in to this machine.
const noShell = "/usr/sbin/nologin"

type account struct {
	name, comment, home string
	uid, gid            int
}

// accounts collects users and groups before they are written.
type accounts struct {
	users  []account
	groups map[string]int
	order  []string // of groups
	member map[string][]string
	used   map[int]bool // ids taken, by users or groups
}

// WriteUsers makes passwd, group and shadow from base-passwd's masters, the
// packages' sysusers.d and the recipe. All are locked. Ids of sysusers.d that
// the file leaves open are dealt from 999 downwards in the order of their
// names, so that they depend on the packages only.
func WriteUsers(t *squash.Tree, r *recipe.Recipe) error {
	a := &accounts{groups: map[string]int{}, member: map[string][]string{}, used: map[int]bool{}}
	if err := a.masters(t); err != nil {
		return err
	}
	for _, g := range r.Groups {
		if err := a.group(g.Name, g.GID); err != nil {
			return err
		}
	}
	for _, u := range r.Users {
		if err := a.user(account{name: u.Name, comment: u.Name, home: u.Home, uid: u.UID, gid: -1}); err != nil {
			return err
		}
	}
	if err := a.sysusers(t); err != nil {
		return err
	}
	return a.write(t)
}

func (a *accounts) masters(t *squash.Tree) error {
	b, err := t.Read(groupMaster)
	if err != nil {
		return fmt.Errorf("groups: %w", err)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		f := strings.Split(line, ":")
		if len(f) < 3 {
			return fmt.Errorf("%s: cannot read %q", groupMaster, line)
		}
		gid, err := strconv.Atoi(f[2])
		if err != nil {
			return fmt.Errorf("%s: %w", groupMaster, err)
		}
		if err := a.group(f[0], gid); err != nil {
			return err
		}
	}
	if b, err = t.Read(passwdMaster); err != nil {
		return fmt.Errorf("users: %w", err)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		f := strings.Split(line, ":")
		if len(f) != 7 {
			return fmt.Errorf("%s: cannot read %q", passwdMaster, line)
		}
		uid, err1 := strconv.Atoi(f[2])
		gid, err2 := strconv.Atoi(f[3])
		if err1 != nil || err2 != nil {
			return fmt.Errorf("%s: cannot read %q", passwdMaster, line)
		}
		if err := a.user(account{f[0], f[4], f[5], uid, gid}); err != nil {
			return err
		}
	}
	return nil
}

func (a *accounts) group(name string, gid int) error {
	if old, ok := a.groups[name]; ok {
		if old != gid {
			return Refuse(ReasonOptions, "group %s has two ids, %d and %d", name, old, gid)
		}
		return nil
	}
	a.groups[name], a.used[gid] = gid, true
	a.order = append(a.order, name)
	return nil
}

func (a *accounts) user(u account) error {
	for _, old := range a.users {
		if old.name == u.name {
			return nil
		}
		if old.uid == u.uid {
			return Refuse(ReasonOptions, "users %s and %s have the same id %d", old.name, u.name, u.uid)
		}
	}
	if u.gid < 0 {
		gid, ok := a.groups[u.name]
		if !ok {
			gid = u.uid
			if err := a.group(u.name, gid); err != nil {
				return err
			}
		}
		u.gid = gid
	}
	a.used[u.uid] = true
	a.users = append(a.users, u)
	return nil
}

// free deals the next open system id.
func (a *accounts) free() (int, error) {
	for id := 999; id >= 100; id-- {
		if !a.used[id] {
			a.used[id] = true
			return id, nil
		}
	}
	return 0, Refuse(ReasonOptions, "no system id is left")
}

// sysusers reads sysusers.d(5) as far as packages use it: u, g and m lines.
func (a *accounts) sysusers(t *squash.Tree) error {
	var lines []string
	for _, p := range t.Paths() {
		if path.Dir(p) != "/usr/lib/sysusers.d" || !strings.HasSuffix(p, ".conf") {
			continue
		}
		b, err := t.Read(p)
		if err != nil {
			return err
		}
		for _, line := range strings.Split(string(b), "\n") {
			line = strings.TrimSpace(line)
			if line != "" && line[0] != '#' {
				lines = append(lines, line)
			}
		}
	}
	// Groups first, then users, then members, each by name: the order of files does not matter.
	sort.Strings(lines)
	// Ids that a later line fixes are not to be dealt to an earlier one.
	for _, line := range lines {
		if f, err := splitQuoted(line); err == nil && len(f) > 2 {
			uid, _, _ := strings.Cut(f[2], ":")
			if id, err := strconv.Atoi(uid); err == nil {
				a.used[id] = true
			}
		}
	}
	for _, kind := range []string{"g", "u", "m"} {
		for _, line := range lines {
			f, err := splitQuoted(line)
			if err != nil {
				return fmt.Errorf("sysusers.d: %q: %w", line, err)
			}
			if len(f) < 2 || strings.TrimRight(f[0], "!") != kind {
				continue
			}
			if err := a.sysuser(kind, f); err != nil {
				return fmt.Errorf("sysusers.d: %q: %w", line, err)
			}
		}
	}
	return nil
}

func (a *accounts) sysuser(kind string, f []string) error {
	name, id := f[1], "-"
	if len(f) > 2 {
		id = f[2]
	}
	switch kind {
	case "m":
		if len(f) < 3 {
			return fmt.Errorf("a member line needs a group")
		}
		a.member[f[2]] = append(a.member[f[2]], name)
		return nil
	case "g":
		if _, ok := a.groups[name]; ok {
			return nil
		}
		gid, err := a.id(id)
		if err != nil {
			return err
		}
		return a.group(name, gid)
	}
	for _, u := range a.users {
		if u.name == name {
			return nil
		}
	}
	u := account{name: name, comment: name, home: "/", gid: -1}
	if len(f) > 3 && f[3] != "-" {
		u.comment = f[3]
	}
	if len(f) > 4 && f[4] != "-" {
		u.home = f[4]
	}
	uid, gid, pair := strings.Cut(id, ":")
	if pair {
		g, ok := a.groups[gid]
		if !ok {
			var err error
			if g, err = strconv.Atoi(gid); err != nil {
				return fmt.Errorf("group %q is not there", gid)
			}
		}
		u.gid = g
	}
	var err error
	if g, ok := a.groups[name]; ok && uid == "-" && u.gid < 0 {
		u.uid = g
	} else if u.uid, err = a.id(uid); err != nil {
		return err
	}
	return a.user(u)
}

func (a *accounts) id(s string) (int, error) {
	if s == "-" || strings.HasPrefix(s, "/") {
		return a.free()
	}
	id, err := strconv.Atoi(s)
	if err != nil || id < 0 || id > 65534 {
		return 0, fmt.Errorf("id %q cannot be read", s)
	}
	return id, nil
}

func (a *accounts) write(t *squash.Tree) error {
	var passwd, shadow, group, gshadow strings.Builder
	sort.SliceStable(a.users, func(i, j int) bool { return a.users[i].uid < a.users[j].uid })
	for _, u := range a.users {
		fmt.Fprintf(&passwd, "%s:x:%d:%d:%s:%s:%s\n", u.name, u.uid, u.gid, strings.ReplaceAll(u.comment, ":", " "), u.home, noShell)
		fmt.Fprintf(&shadow, "%s:!*:::::::\n", u.name)
	}
	sort.SliceStable(a.order, func(i, j int) bool { return a.groups[a.order[i]] < a.groups[a.order[j]] })
	for _, g := range a.order {
		members := a.member[g]
		sort.Strings(members)
		fmt.Fprintf(&group, "%s:x:%d:%s\n", g, a.groups[g], strings.Join(members, ","))
		fmt.Fprintf(&gshadow, "%s:!*::%s\n", g, strings.Join(members, ","))
	}
	for _, f := range []struct {
		path string
		mode uint32
		text string
	}{
		{"/etc/passwd", 0o644, passwd.String()}, {"/etc/group", 0o644, group.String()},
		{"/etc/shadow", 0o600, shadow.String()}, {"/etc/gshadow", 0o600, gshadow.String()},
	} {
		if err := t.WriteFile(f.path, f.mode, []byte(f.text)); err != nil {
			return err
		}
	}
	return nil
}

// splitQuoted splits a line at white space; "..." keeps words together.
func splitQuoted(line string) ([]string, error) {
	var out []string
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimSpace(line) {
		if line[0] == '"' {
			end := strings.IndexByte(line[1:], '"')
			if end < 0 {
				return nil, fmt.Errorf("quote without an end")
			}
			out, line = append(out, line[1:1+end]), line[end+2:]
			continue
		}
		end := strings.IndexAny(line, " \t")
		if end < 0 {
			end = len(line)
		}
		out, line = append(out, line[:end]), line[end:]
	}
	return out, nil
}
