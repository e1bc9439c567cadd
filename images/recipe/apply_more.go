package recipe

import "gopkg.in/yaml.v3"

func (d *document) links(n *yaml.Node, ours bool, r *Recipe) error {
	return d.sequence(n, func(item *yaml.Node) error {
		e := Link{At: d.at(item)}
		err := d.mapping(item, func(key string, at Position, v *yaml.Node) (err error) {
			switch key {
			case "path":
				e.Path, err = d.place(v, ours)
			case "to":
				e.Target, err = d.word(v, "a link target", validTarget)
			default:
				err = unknown(at, key, "path", "to")
			}
			return err
		})
		if err != nil {
			return err
		}
		if e.Path == "" || e.Target == "" {
			return errorf(e.At, ReasonValue, "a link needs path and to")
		}
		r.Links = append(r.Links, e)
		return nil
	})
}

// System ids that Debian's policy §9.2 leaves to packages.
const (
	minID = 100
	maxID = 999
)

func (d *document) groups(n *yaml.Node, r *Recipe) error {
	return d.sequence(n, func(item *yaml.Node) error {
		e := Group{At: d.at(item)}
		err := d.mapping(item, func(key string, at Position, v *yaml.Node) (err error) {
			switch key {
			case "name":
				e.Name, err = d.word(v, "a group name", validUser)
			case "gid":
				e.GID, err = d.number(v, minID, maxID)
			default:
				err = unknown(at, key, "name", "gid")
			}
			return err
		})
		if err != nil {
			return err
		}
		if e.Name == "" || e.GID == 0 {
			return errorf(e.At, ReasonValue, "a group needs name and gid")
		}
		r.Groups = append(r.Groups, e)
		return nil
	})
}

func (d *document) users(n *yaml.Node, r *Recipe) error {
	return d.sequence(n, func(item *yaml.Node) error {
		e := User{Home: "/", At: d.at(item)}
		err := d.mapping(item, func(key string, at Position, v *yaml.Node) (err error) {
			switch key {
			case "name":
				e.Name, err = d.word(v, "a user name", validUser)
			case "uid":
				e.UID, err = d.number(v, minID, maxID)
			case "home":
				e.Home, err = d.word(v, "a clean absolute path", validPath)
			default:
				err = unknown(at, key, "name", "uid", "home")
			}
			return err
		})
		if err != nil {
			return err
		}
		if e.Name == "" || e.UID == 0 {
			return errorf(e.At, ReasonValue, "a user needs name and uid")
		}
		r.Users = append(r.Users, e)
		return nil
	})
}

func (d *document) joins(n *yaml.Node, ours bool, r *Recipe) error {
	return d.sequence(n, func(item *yaml.Node) error {
		e := Join{At: d.at(item)}
		err := d.mapping(item, func(key string, at Position, v *yaml.Node) (err error) {
			switch key {
			case "path":
				e.Path, err = d.place(v, ours)
			case "from":
				e.From, err = d.word(v, "an absolute path glob", validGlob)
			default:
				err = unknown(at, key, "path", "from")
			}
			return err
		})
		if err != nil {
			return err
		}
		if e.Path == "" || e.From == "" {
			return errorf(e.At, ReasonValue, "a join needs path and from")
		}
		r.Join = append(r.Join, e)
		return nil
	})
}
