package recipe

import (
	"path"
	"regexp"
	"strings"
)

var (
	unitName   = regexp.MustCompile(`^[A-Za-z0-9:_.\\@-]+\.(service|socket|target|timer|mount|automount|path|slice|swap)$`)
	userName   = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,30}$`)
	moduleName = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
	plainFile  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)
	deviceTree = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*/[A-Za-z0-9][A-Za-z0-9_.-]*\.dtb$`)
	cmdWord    = regexp.MustCompile(`^[A-Za-z0-9_.][A-Za-z0-9_.=,:/+-]*$`)
)

func validUnit(s string) bool   { return unitName.MatchString(s) }
func validUser(s string) bool   { return userName.MatchString(s) }
func validModule(s string) bool { return moduleName.MatchString(s) }
func validWord(s string) bool   { return cmdWord.MatchString(s) }

func validPlainFile(s string) bool  { return plainFile.MatchString(s) }
func validDeviceTree(s string) bool { return deviceTree.MatchString(s) }

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f || r == 0xfffd })
}

func validPath(s string) bool {
	return path.IsAbs(s) && s != "/" && path.Clean(s) == s && printable(s) && len(s) < 4096
}

func validTarget(s string) bool { return s != "" && printable(s) && len(s) < 4096 }

func validSource(s string) bool {
	return s != "" && !path.IsAbs(s) && path.Clean(s) == s && printable(s) && !strings.HasPrefix(s, "..")
}

func validGlob(s string) bool {
	_, err := path.Match(strings.ReplaceAll(s, "**", "*"), "")
	return path.IsAbs(s) && s != "/" && printable(s) && err == nil
}

// validModuleGlob accepts paths below kernel/ such as drivers/net/ethernet/intel/**.
func validModuleGlob(s string) bool {
	return s != "" && !path.IsAbs(s) && validGlob("/"+s)
}

// MatchPath tells whether p matches a glob of a recipe: * and ? stay inside one
// path component, a final "/**" matches everything below.
func MatchPath(glob, p string) bool {
	if base, ok := strings.CutSuffix(glob, "/**"); ok {
		depth := strings.Count(base, "/")
		parts := strings.Split(p, "/")
		if len(parts) <= depth+1 {
			return false
		}
		ok, _ := path.Match(base, strings.Join(parts[:depth+1], "/"))
		return ok
	}
	ok, _ := path.Match(glob, p)
	return ok
}

// check looks at the whole after merging.
func (r *Recipe) check(builtin string) error {
	whole := Position{File: "recipe"}
	for _, need := range []struct{ name, value string }{
		{"suite", r.Suite}, {"kernel.package", r.Kernel.Package},
	} {
		if need.value == "" {
			return errorf(whole, ReasonValue, "%s is set nowhere: 'extends: %s' gives it", need.name, builtin)
		}
	}
	if len(r.Components) == 0 || len(r.Kernel.Initrd) == 0 || r.Squash.Level == 0 || r.Squash.BlockSize == 0 {
		return errorf(whole, ReasonValue, "components, kernel.initrd_modules, squash.level and squash.block_size are needed: 'extends: %s' gives them", builtin)
	}
	seen := map[string]Position{}
	once := func(kind, name string, at Position) error {
		if first, ok := seen[kind+name]; ok {
			return errorf(at, ReasonValue, "%s %s is already given at %s", kind, name, first)
		}
		seen[kind+name] = at
		return nil
	}
	for _, g := range r.Groups {
		if err := once("group", g.Name, g.At); err != nil {
			return err
		}
	}
	for _, u := range r.Users {
		if err := once("user", u.Name, u.At); err != nil {
			return err
		}
	}
	return nil
}
