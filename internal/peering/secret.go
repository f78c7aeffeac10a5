package peering

// Unlock puts in the passwords that the configuration names, in place. read gets NAME/KEY. Where it has none, Build
// says so, and whoever needs that password is not spoken to: never without one that people asked for.
func (c *Config) Unlock(read func(ref string) (Secret, error)) {
	one := func(ref string, into *Secret, locked *string) {
		if *into, *locked = "", ""; ref == "" {
			return
		}
		s, err := read(ref)
		switch {
		case err != nil:
			*locked = err.Error()
		case s == "":
			*locked = "it is empty"
		default:
			*into = s
		}
	}
	one(c.Settings.MeshPasswordRef, &c.Settings.MeshPassword, &c.Settings.MeshLocked)
	for i := range c.Peers {
		one(c.Peers[i].PasswordRef, &c.Peers[i].Password, &c.Peers[i].Locked)
	}
}
